select
    flights.carrier,
    airlines.carrier_name,
    flights.flight_month,
    {{ punctuality() }}
from {{ ref('stg_flights') }} as flights
left join {{ ref('stg_airlines') }} as airlines on flights.carrier = airlines.carrier
group by flights.carrier, airlines.carrier_name, flights.flight_month
order by flights.carrier, flights.flight_month
