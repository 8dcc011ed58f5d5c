with readings as (

    -- The files carry binary noise (10.357019999999999 mph); as decimals, readings compare and add up exactly.
    select
        origin,
        time_hour as hour_utc,
        cast(temp as decimal(5, 2)) as temperature_f,
        cast(wind_speed as decimal(7, 2)) as reported_wind_mph,
        cast(precip as decimal(5, 2)) as precipitation_in,
        cast(visib as decimal(5, 2)) as visibility_mi
    from {{ source('staging', 'weather') }}

),

plausible as (

    -- No sustained wind on the ground has come near 250 mph: a faulty reading, not a storm.
    select
        *,
        case when reported_wind_mph < 250 then reported_wind_mph end as wind_mph
    from readings

)

select
    origin,
    hour_utc,
    temperature_f,
    precipitation_in,
    wind_mph,
    visibility_mi,
    -- Intensity of rain as the American Meteorological Society's glossary divides it, by inches an hour.
    case
        when precipitation_in is null then 'unknown'
        when precipitation_in = 0 then 'none'
        when precipitation_in <= 0.10 then 'light'
        when precipitation_in <= 0.30 then 'moderate'
        else 'heavy'
    end as precipitation_band,
    -- Forces of the Beaufort scale: up to 3, 4 and 5, 6 and above.
    case
        when wind_mph is null then 'unknown'
        when wind_mph < 13 then 'light'
        when wind_mph < 25 then 'fresh'
        else 'strong'
    end as wind_band,
    -- Limits of the FAA's flight categories VFR, MVFR, IFR and LIFR (visibility only, not the ceiling).
    case
        when visibility_mi is null then 'unknown'
        when visibility_mi > 5 then 'over 5 mi'
        when visibility_mi >= 3 then '3 to 5 mi'
        when visibility_mi >= 1 then '1 to 3 mi'
        else 'under 1 mi'
    end as visibility_band
from plausible
