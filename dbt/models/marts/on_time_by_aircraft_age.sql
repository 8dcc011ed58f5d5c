with aged as (

    select
        flights.*,
        -- Tail numbers are given out again: an aircraft built after the flight is not the one that flew it.
        case
            when planes.built_year <= year(flights.flight_date) then year(flights.flight_date) - planes.built_year
        end as age_years
    from {{ ref('stg_flights') }} as flights
    left join {{ ref('stg_planes') }} as planes on flights.tail_number = planes.tail_number

),

banded as (

    select
        *,
        case
            when age_years is null then 'unknown'
            when age_years < 5 then 'under 5 years'
            when age_years < 10 then '5 to 9 years'
            when age_years < 15 then '10 to 14 years'
            when age_years < 20 then '15 to 19 years'
            when age_years < 25 then '20 to 24 years'
            else '25 years and over'
        end as age_band
    from aged

)

select
    age_band,
    cast(min(age_years) as integer) as youngest_years,
    cast(count(distinct tail_number) as bigint) as aircraft,
    {{ punctuality() }}
from banded
group by age_band
order by youngest_years nulls last
