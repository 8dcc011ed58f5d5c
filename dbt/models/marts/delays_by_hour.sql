with flights_in_weather as (

    select
        flights.*,
        coalesce(weather.precipitation_band, 'unknown') as precipitation_band,
        coalesce(weather.wind_band, 'unknown') as wind_band,
        coalesce(weather.visibility_band, 'unknown') as visibility_band
    from {{ ref('stg_flights') }} as flights
    -- By the instant, not by the local hour: the hour from 1 to 2 happens twice when daylight saving time ends.
    left join {{ ref('stg_weather') }} as weather
        on flights.origin = weather.origin and flights.scheduled_hour_utc = weather.hour_utc

)

select
    origin,
    scheduled_hour,
    precipitation_band,
    wind_band,
    visibility_band,
    {{ punctuality() }}
from flights_in_weather
group by origin, scheduled_hour, precipitation_band, wind_band, visibility_band
order by origin, scheduled_hour, precipitation_band, wind_band, visibility_band
